"""What a run did to a model, as data and as a page to look at."""
