"""What answers, rankings and choices are worth, and the report on them."""
