"""What a run needs around mmengine's Runner.

Nothing is imported here: ``import sigplug`` loads :mod:`.upstream_fixes` only.
"""
