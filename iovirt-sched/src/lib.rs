//! I/O schedulers for iovirt as pure algorithms over an injected clock.
