// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program as an operator sees it: it starts, ends and fails as documented, its verbs answer, and
//! its log and `show` name the cause of trouble.

mod latency;
mod lifecycle;
mod logs;
mod panics;
mod reload;
mod trouble;
mod verbs;
