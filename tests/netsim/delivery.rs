// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arrivals over a bad underlay: a table, so that a change for the worse shows as a diff.

use std::fmt::Write;

use crate::net::{A, B, Link, Net, frame, millis, numbers, secs};

const FRAMES: u64 = 1000;

/// Delivered of every thousand, out of order, and duplicates, of small and of cut frames.
#[test]
fn the_table_of_delivery() {
    let mut table =
        String::from("loss dup jitter | small: here late twice | cut: here late twice\n");
    for (loss_percent, duplicate_percent, jitter) in [
        (0, 0, 0),
        (0, 10, 0),
        (0, 0, 20),
        (1, 0, 0),
        (5, 5, 5),
        (20, 0, 0),
    ] {
        let link = Link {
            loss_percent,
            duplicate_percent,
            jitter: millis(jitter),
            ..Link::default()
        };
        write!(table, "{loss_percent:4} {duplicate_percent:3} {jitter:6} |").unwrap();
        for len in [100, 3000] {
            let [here, late, twice] = deliver(link, len);
            assert_eq!(twice, 0, "no frame arrives twice");
            write!(table, " {here:11} {late:4} {twice:5} |").unwrap();
        }
        table.push('\n');
    }
    assert_eq!(table.trim_end(), EXPECTED.trim(), "\n{table}");
}

const EXPECTED: &str = "
loss dup jitter | small: here late twice | cut: here late twice
   0   0      0 |        1000    0     0 |        1000    0     0 |
   0  10      0 |        1000    0     0 |        1000    0     0 |
   0   0     20 |        1000  456     0 |        1000  409     0 |
   1   0      0 |         991    0     0 |         977    0     0 |
   5   5      5 |         946  296     0 |         859  166     0 |
  20   0      0 |         815    0     0 |         541    0     0 |
";

fn deliver(link: Link, len: usize) -> [usize; 3] {
    let mut net = Net::connected();
    net.run_for(secs(2));
    // Until here, keys and jitter have decided how often the dice were thrown.
    net.reset_dice();
    net.link = link;
    for number in 0..FRAMES {
        net.send(A, &frame(number, len)).unwrap();
        net.run_for(millis(1));
    }
    net.run_for(millis(100));
    let received = numbers(&net.take_received(B));
    let late = received.windows(2).filter(|pair| pair[1] < pair[0]).count();
    let mut unique = received.clone();
    unique.sort_unstable();
    unique.dedup();
    [unique.len(), late, received.len() - unique.len()]
}
