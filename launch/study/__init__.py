"""A study: paradigms and tasks at equal budgets, trained and evaluated by one command."""
