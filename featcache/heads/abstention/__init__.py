"""When a head gives no answer: texts that are unlike its train texts, and predictions that are not sure."""
