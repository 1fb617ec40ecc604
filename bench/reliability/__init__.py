"""What damaged files and kills do."""
