"""PEFT's own test suite, run on this project's tuners."""

SUITE = "peft_suite_tests"
"""Name of the package that holds PEFT's tests; `tests` is this project's own."""
RECORDS = "KASATUNE_PEER_RECORDS"
"""Environment variable with the folder of the records, one file of JSON lines for each test file."""
