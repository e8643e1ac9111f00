"""From a typed command line to checked settings: recipes, composition, trust, checks, listings."""
