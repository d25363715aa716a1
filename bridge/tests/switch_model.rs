// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole switch against a model that does the same in the obvious way: any frames by any ports,
//! in any VLANs, through ageing, moves, blocks and limits.

mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn behaves_like_the_model(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        model::run(&bytes);
    }
}
