//! The mirrors of the structs and enums of `bpf-src/events.h` in Rust. A mirror has the layout in memory, reading and
//! writing without `unsafe`, and the names in the object's BTF.

/// A value with a fixed layout in memory, in this machine's byte order.
pub trait Plain: Sized {
    /// Read a value from exactly its size in bytes.
    fn get(bytes: &[u8]) -> Self;
    /// Write the value to exactly its size in bytes.
    fn put(&self, to: &mut [u8]);
}

macro_rules! plain_numbers {
    ($($number:ty)*) => { $(impl Plain for $number {
        fn get(bytes: &[u8]) -> Self {
            Self::from_ne_bytes(Plain::get(bytes))
        }
        fn put(&self, to: &mut [u8]) {
            to.copy_from_slice(&self.to_ne_bytes());
        }
    })* };
}
plain_numbers!(u8 u16 u32 u64 i32);

impl<const N: usize> Plain for [u8; N] {
    // Records are read with this function: a move of an array is no call of memcpy.
    #[inline(always)]
    fn get(bytes: &[u8]) -> Self {
        *<&Self>::try_from(bytes).expect("the size of the value")
    }
    fn put(&self, to: &mut [u8]) {
        to.copy_from_slice(self);
    }
}

macro_rules! plain_arrays {
    ($($value:ty)*) => { $(impl<const N: usize> Plain for [$value; N] {
        fn get(bytes: &[u8]) -> Self {
            let mut all = [<$value>::default(); N];
            for (value, bytes) in all.iter_mut().zip(bytes.chunks_exact(size_of::<$value>())) {
                *value = <$value>::get(bytes);
            }
            all
        }
        fn put(&self, to: &mut [u8]) {
            for (value, bytes) in self.iter().zip(to.chunks_exact_mut(size_of::<$value>())) {
                value.put(bytes);
            }
        }
    })* };
}
plain_arrays!(u32 u64);

/// A field's name, offset in bytes and size in bytes.
pub type Field = (&'static str, usize, usize);

/// A mirror of a struct of `events.h`.
pub trait Mirror: Plain {
    /// The struct's name in C.
    const C_NAME: &'static str;
    /// The struct's fields.
    const FIELDS: &'static [Field];
}

/// Define a struct, its layout in memory, and functions that read and write it without `unsafe`.
macro_rules! mirror {
    ($(#[$meta:meta])* $c_name:literal $name:ident { $($(#[$field_meta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }

        impl Plain for $name {
            fn get(bytes: &[u8]) -> Self {
                Self { $($field: {
                    let start = std::mem::offset_of!($name, $field);
                    <$ty>::get(&bytes[start..start + size_of::<$ty>()])
                },)* }
            }
            fn put(&self, to: &mut [u8]) {
                $({
                    let start = std::mem::offset_of!($name, $field);
                    self.$field.put(&mut to[start..start + size_of::<$ty>()]);
                })*
            }
        }

        impl Mirror for $name {
            const C_NAME: &'static str = $c_name;
            const FIELDS: &'static [Field] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$ty>()),)*];
        }
    };
}

/// A mirror of an enum of `events.h`.
pub trait MirrorEnum {
    /// The enum's name in C.
    const C_NAME: &'static str;
    /// The name of each enumerator in C, and its value.
    const ENUMERATORS: &'static [(&'static str, u32)];
}

/// Define an enum, and the name of each of its enumerators in C.
macro_rules! mirror_enum {
    ($(#[$meta:meta])* $c_name:literal $name:ident: $repr:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $value:literal $c_variant:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr($repr)]
        pub enum $name { $($(#[$variant_meta])* $variant = $value,)* }

        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: [Self; [$($value),*].len()] = [$(Self::$variant,)*];
        }

        impl MirrorEnum for $name {
            const C_NAME: &'static str = $c_name;
            const ENUMERATORS: &'static [(&'static str, u32)] = &[$(($c_variant, $value),)*];
        }
    };
}

pub(super) use {mirror, mirror_enum, plain_arrays};
