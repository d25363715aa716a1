// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the queues between threads under all races; see `src/queue/models.rs`.
// They are a module of the program, which uses all of it.
#![allow(dead_code)]

#[path = "../../../src/queue/mod.rs"]
mod queue;

use queue::models;

#[test]
fn nothing_is_left_in_a_mailbox_whose_owner_sleeps() {
    models::nothing_is_left_in_a_mailbox_whose_owner_sleeps();
}

#[test]
fn items_that_an_owner_leaves_keep_it_awake() {
    models::items_that_an_owner_leaves_keep_it_awake();
}

#[test]
fn a_full_mailbox_refuses_and_loses_nothing() {
    models::a_full_mailbox_refuses_and_loses_nothing();
}

#[test]
fn two_threads_that_send_to_each_other_both_get_everything() {
    models::two_threads_that_send_to_each_other_both_get_everything();
}

#[test]
fn a_stop_ends_every_thread() {
    models::a_stop_ends_every_thread();
}

#[test]
fn batches_come_back_in_order_and_all_ends_with_the_dealer() {
    models::batches_come_back_in_order_and_all_ends_with_the_dealer();
}

#[test]
fn the_value_of_a_bit_is_seen_with_it() {
    models::the_value_of_a_bit_is_seen_with_it();
}
