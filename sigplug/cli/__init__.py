"""What the command line and the tools share.

Nothing of it is needed to train, or to infer, with a tool of one's own.
Nothing is imported here: ``import sigplug`` loads :mod:`.machine` only.
"""
