// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the FDB and the limits under all races; see `bridge/src/fdb/models.rs`.

use patchcord_bridge::fdb::models;

#[test]
fn a_lookup_tells_a_port_of_this_address() {
    models::a_lookup_tells_a_port_of_this_address();
}

#[test]
fn two_that_learn_an_address_leave_one_entry() {
    models::two_that_learn_an_address_leave_one_entry();
}

#[test]
fn an_assignment_outlives_an_address_learned_at_the_same_time() {
    models::an_assignment_outlives_an_address_learned_at_the_same_time();
}

#[test]
fn a_dampened_address_moves_once() {
    models::a_dampened_address_moves_once();
}

#[test]
fn the_addresses_of_a_port_are_counted_exactly() {
    models::the_addresses_of_a_port_are_counted_exactly();
}

#[test]
fn an_address_whose_port_goes_down_is_kept_from_guarded_ports() {
    models::an_address_whose_port_goes_down_is_kept_from_guarded_ports();
}

#[test]
fn a_move_is_read_whole() {
    models::a_move_is_read_whole();
}

#[test]
fn threads_share_one_limit() {
    models::threads_share_one_limit();
}
