"""Process groups, ranks and collectives."""
