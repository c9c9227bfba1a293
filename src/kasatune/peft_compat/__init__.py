"""PEFT 0.18 to 0.21: what our tuners use and older versions lack, detected and supplied here."""

# First: importing peft runs kasatune's registration, which imports the modules of this package.
import peft  # noqa: F401
