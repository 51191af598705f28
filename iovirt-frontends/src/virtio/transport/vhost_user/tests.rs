//! Messages and tables; whole sessions are in the root package's `tests/vhost_user`.
