"""Tables, sheets, cards and plots of the scores."""
