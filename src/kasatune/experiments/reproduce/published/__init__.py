"""What the paper and its authors' logs say, as plain data, one file a table."""
