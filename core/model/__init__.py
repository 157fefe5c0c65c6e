"""The neutral description of models, their blocks, and what every exporter shares."""
