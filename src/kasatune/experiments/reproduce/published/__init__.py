"""The numbers in the paper and in its authors' logs, as plain data, one file per table."""
