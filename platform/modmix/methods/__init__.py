"""Ways to combine modalities; ``table.py`` lists them, ``base.py`` says what a method is."""
