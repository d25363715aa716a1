//! A pure layer-2 switch.
#![forbid(unsafe_code)]
