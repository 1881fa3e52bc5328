"""The daemon: bundles on a microphone, left alone.

    service  the microphone kept open, blocks through the pipeline, detections to consumers
    status   what the service knows of itself, as a file that is replaced every second
    notify   readiness and the watchdog of systemd

A consumer is a function of a detection and the name of the stream; what comes later (actions, mqtt, wyoming, web) is
one more of them each, in a file of its own here.
"""
