// SPDX-License-Identifier: MIT OR Apache-2.0
//! Enums of reasons, each with the name under which it is counted. For this crate and its callers.

/// Makes the enum, with `ALL` and `name`.
#[doc(hidden)]
#[macro_export]
macro_rules! reasons {
    ($(#[$about:meta])* $name:ident, $($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in logs and metrics; it never changes.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}
