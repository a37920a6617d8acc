"""Tables, sheets and plots of what was measured."""
