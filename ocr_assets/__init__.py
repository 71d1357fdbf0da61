"""Decides which videos of a corpus carry too much text on screen to train on."""
