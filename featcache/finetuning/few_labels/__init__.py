"""Few labels: the contrastive step beside the head recipes."""
