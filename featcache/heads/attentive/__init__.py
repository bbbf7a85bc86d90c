"""The attentive head: learned queries over the cached token states of several layers."""
