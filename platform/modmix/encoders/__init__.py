"""Networks that turn one modality into a feature vector; ``table.py`` lists them."""
