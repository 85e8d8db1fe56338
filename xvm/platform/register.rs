// SPDX-License-Identifier: GPL-2.0

//! Registers as types: each field is one line with its name, type and bit range.
//!
//! The kernel has a macro of the same kind (`kernel::bitfield`), but the virtual platform names no kernel type, so that it
//! compiles on the host.

/// Defines a register type over an unsigned integer.
///
/// A field is `getter: type = high..low;` or, for a flag, `getter: bool = bit;`. `getter / setter` makes the field
/// writable. Only what is used is generated: bits that nobody looks at are not named.
macro_rules! register {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Name:ident($raw:ty) { $($fields:tt)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis struct $Name($vis $raw);

        impl $Name {
            register!(@fields $vis $raw; $($fields)*);
        }
    };
    (@fields $vis:vis $raw:ty;) => {};
    (@fields $vis:vis $raw:ty;
        $(#[$meta:meta])* $get:ident $(/ $set:ident)?: bool = $bit:literal; $($rest:tt)*
    ) => {
        $(#[$meta])*
        $vis fn $get(self) -> bool {
            (self.0 >> $bit) & 1 != 0
        }
        $(
            $vis fn $set(&mut self, value: bool) {
                self.0 = self.0 & !(1 << $bit) | (<$raw>::from(value) << $bit);
            }
        )?
        register!(@fields $vis $raw; $($rest)*);
    };
    (@fields $vis:vis $raw:ty;
        $(#[$meta:meta])* $get:ident $(/ $set:ident)?: $ty:ident = $high:literal .. $low:literal; $($rest:tt)*
    ) => {
        $(#[$meta])*
        $vis fn $get(self) -> $ty {
            ((self.0 >> $low) & (<$raw>::MAX >> (<$raw>::BITS - 1 - $high + $low))) as $ty
        }
        $(
            $vis fn $set(&mut self, value: $ty) {
                let mask = <$raw>::MAX >> (<$raw>::BITS - 1 - $high + $low);
                self.0 = self.0 & !(mask << $low) | ((<$raw>::from(value) & mask) << $low);
            }
        )?
        register!(@fields $vis $raw; $($rest)*);
    };
}

#[cfg(test)]
mod tests {
    register! {
        /// Every kind of field that the macro knows.
        struct Sample(u32) {
            low / set_low: u8 = 3..0;
            flag / set_flag: bool = 4;
            top / set_top: u16 = 31..20;
        }
    }

    #[test]
    fn fields_do_not_touch_each_other() {
        let mut sample = Sample(0xffff_ffff);
        sample.set_low(0x35);
        sample.set_flag(false);
        sample.set_top(0x123);
        assert_eq!(sample.0, 0x123f_ffe5);
        assert_eq!(
            (sample.low(), sample.flag(), sample.top()),
            (5, false, 0x123)
        );
    }
}
