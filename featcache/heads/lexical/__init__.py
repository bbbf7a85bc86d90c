"""Words: n-grams of the texts as features, alone (no backbone) or beside cached views."""
