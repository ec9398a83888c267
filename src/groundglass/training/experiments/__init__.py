"""The paper's experiments as lists of trainings, and what works such a list off."""
