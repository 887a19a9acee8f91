//! Queues, model-checked: the product's machines on a model of etcd, with crashes, lost sessions, time-outs and plans
//! that land late. `CONCORDAT_MODEL=large` explores more of each.

#![allow(clippy::expect_used)]

#[path = "queue_model/model.rs"]
mod model;
#[path = "queue_model/store.rs"]
mod store;
#[path = "queue_model/world.rs"]
mod world;

use stateright::{Checker, Model};
use world::{Bounds, Planted, World};

/// No violation in any order of what the bounds allow, and the good end is reached.
fn holds(small: Bounds, large: Bounds) {
    let is_large = std::env::var("CONCORDAT_MODEL").is_ok_and(|size| size == "large");
    let bounds = if is_large { large } else { small };
    // Depth first: breadth first, a million worlds wait in memory.
    let world = World { bounds: bounds.clone(), planted: Planted::Nothing };
    let checker = world.checker().spawn_dfs().join();
    println!("{} states of {bounds:?}", checker.unique_state_count());
    checker.assert_properties();
}

/// The planted bug is found.
fn found(planted: Planted, bounds: Bounds) {
    let checker = World { bounds, planted }.checker().spawn_bfs().join();
    let found = checker.discoveries().into_keys().any(|name| name != "all is acknowledged");
    assert!(found, "{planted:?} was not found in {} states", checker.unique_state_count());
}

fn together() -> Bounds {
    Bounds { publishers: 1, consumers: 1, messages: 2, receives: 2, together: true, ..Bounds::default() }
}

fn stored(consumers: usize, stored: u8) -> Bounds {
    Bounds { consumers, stored, ..Bounds::default() }
}

#[test]
fn two_consumers_share_a_segment() {
    let small = Bounds { receives: 3, ..stored(2, 2) };
    holds(small.clone(), Bounds { receives: 4, nacks: 1, max: 2, ..stored(2, 3) });
}

#[test]
fn two_producers_and_two_consumers() {
    let two = Bounds { publishers: 2, consumers: 2, max_deliveries: 2, prompt: true, ..Bounds::default() };
    let small = Bounds { receives: 3, nacks: 1, timeouts: 1, ..two.clone() };
    holds(small.clone(), Bounds { crashes: 1, ..small });
    let small = Bounds { receives: 2, nacks: 1, timeouts: 1, ..two };
    holds(Bounds { crashes: 1, ..small.clone() }, Bounds { crashes: 1, late: 1, ..small.clone() });
    holds(Bounds { losses: 1, ..small.clone() }, Bounds { losses: 1, late: 1, ..small });
}

/// A nack may yet land when the same delivery is acknowledged.
#[test]
fn two_producers_and_two_consumers_and_plans_that_land_late() {
    let small = Bounds { publishers: 2, consumers: 2, max_deliveries: 2, prompt: true, ..Bounds::default() };
    let small = Bounds { receives: 2, nacks: 1, late: 1, ..small };
    holds(small.clone(), Bounds { receives: 3, ..small });
    let small = Bounds { prompt: true, receives: 3, late: 2, ..stored(2, 1) };
    holds(Bounds { crashes: 1, ..small.clone() }, Bounds { crashes: 1, nacks: 1, ..small.clone() });
    holds(Bounds { losses: 1, ..small.clone() }, Bounds { losses: 1, nacks: 1, ..small.clone() });
    let small = Bounds { nacks: 1, timeouts: 1, ..small };
    holds(small.clone(), Bounds { late: 3, ..small });
}

#[test]
fn nacks_and_time_outs_end_in_dead_letters() {
    let small = Bounds { receives: 3, nacks: 1, timeouts: 1, max_deliveries: 2, ..stored(1, 2) };
    holds(small.clone(), Bounds { receives: 4, nacks: 2, ..small });
}

#[test]
fn a_consumer_loses_its_session() {
    let small = Bounds { receives: 2, losses: 1, max_deliveries: 2, ..stored(2, 1) };
    holds(small.clone(), Bounds { receives: 3, losses: 2, timeouts: 1, ..small });
}

#[test]
fn a_consumer_crashes_and_its_app_acks_at_the_next() {
    let small = Bounds { receives: 2, crashes: 1, max_deliveries: 2, ..stored(2, 1) };
    holds(small.clone(), Bounds { receives: 3, late: 1, ..small });
}

#[test]
fn answers_are_lost_and_plans_land_late() {
    let small = Bounds { receives: 2, late: 2, hang_ups: 1, ..stored(1, 2) };
    holds(small.clone(), Bounds { consumers: 2, ..small });
}

#[test]
fn producers_repeat_what_was_not_answered() {
    let small = Bounds { publishers: 2, consumers: 1, receives: 1, late: 1, repeats: 1, ..Bounds::default() };
    holds(small.clone(), Bounds { messages: 2, repeats: 2, late: 2, ..small });
}

#[test]
fn the_queue_is_deleted_under_its_publishers() {
    let small = Bounds { publishers: 2, consumers: 1, receives: 1, undefined: 1, ..Bounds::default() };
    holds(small.clone(), Bounds { late: 1, receives: 2, ..small });
}

#[test]
fn messages_go_straight_to_who_waits_beside_their_publisher() {
    let small = Bounds { timeouts: 1, hang_ups: 1, max_deliveries: 2, ..together() };
    holds(small.clone(), Bounds { receives: 3, nacks: 1, max: 2, ..small });
    // The other one has his sidecar to himself.
    let small = Bounds { consumers: 2, receives: 3, ..together() };
    holds(small.clone(), Bounds { publishers: 2, ..small });
}

#[test]
fn what_goes_straight_is_lost_on_its_way() {
    let small = Bounds { messages: 1, losses: 1, late: 1, max_deliveries: 1, ..together() };
    holds(small.clone(), Bounds { receives: 3, max_deliveries: 2, ..small });
    let small = Bounds { losses: 0, crashes: 1, ..small };
    holds(small.clone(), Bounds { receives: 3, max_deliveries: 2, ..small });
}

#[test]
fn what_goes_straight_is_sent_again() {
    let small = Bounds { messages: 1, receives: 3, repeats: 1, late: 1, undefined: 1, ..together() };
    holds(small.clone(), Bounds { receives: 4, repeats: 2, late: 2, ..small });
}

#[test]
fn an_old_receipt_that_settles_a_new_delivery_is_found() {
    found(Planted::ReceiptWithoutDelivery, Bounds { receives: 2, timeouts: 1, ..stored(1, 1) });
}

#[test]
fn deliveries_counted_after_the_hand_out_are_found() {
    found(Planted::CountedAfter, Bounds { receives: 2, losses: 1, ..stored(1, 1) });
}

#[test]
fn what_goes_straight_and_is_counted_after_is_found() {
    found(Planted::CountedAfter, together());
}

#[test]
fn a_take_that_follows_no_progress_is_found() {
    found(Planted::TakeUnguarded, Bounds { receives: 2, ..stored(2, 1) });
}

#[test]
fn two_that_each_leave_the_segment_to_the_other_are_found() {
    found(Planted::SettleUnguarded, Bounds { receives: 2, ..stored(2, 2) });
}

#[test]
fn a_settlement_after_the_claim_was_lost_is_found() {
    found(Planted::SettleWithoutClaim, Bounds { receives: 2, losses: 1, ..stored(2, 1) });
}

#[test]
fn a_dead_letter_that_comes_after_the_end_is_found() {
    found(Planted::BuriedLater, Bounds { receives: 1, nacks: 1, max_deliveries: 1, ..stored(1, 1) });
}

#[test]
fn a_publish_under_a_stale_definition_is_found() {
    found(Planted::DefinitionUnguarded, Bounds { publishers: 1, undefined: 1, ..Bounds::default() });
}

#[test]
fn a_repeat_that_is_stored_twice_is_found() {
    found(Planted::DedupUnguarded, Bounds { publishers: 1, repeats: 1, ..Bounds::default() });
}

#[test]
fn a_consumer_that_waits_beside_a_ready_message_is_found() {
    found(Planted::DeafToClaims, Bounds { receives: 2, losses: 1, ..stored(2, 1) });
}
