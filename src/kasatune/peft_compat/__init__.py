"""PEFT 0.18 to 0.21: what our tuners use and older versions lack, detected and supplied here."""
