"""What holds for every test."""

import signal

# A program that a shell starts in the background inherits that Ctrl-C is ignored, and so do the programs it starts
# itself: the tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
