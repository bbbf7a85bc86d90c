"""BERT and its kind, without the modelling code of transformers, whose import takes seconds."""
