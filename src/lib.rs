//! Composable virtual devices and back-ends.
