"""How a rule is written: formulas with letters or numbers, and the call of torch's class."""
