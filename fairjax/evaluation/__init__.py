"""Models as they are handed out, and those that hospitals keep to themselves."""
