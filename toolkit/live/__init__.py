"""The daemon: bundles on a microphone, left alone."""
