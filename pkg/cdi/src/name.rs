//! Names: `vendor/class=device`, and the annotations that ask for devices.
//!
//! ```text
//!  vendor.com/gpu=gpu0:1      vendor, class: letter, then [A-Za-z0-9._-], letter or digit at the end
//!  └─vendor─┘ └┬┘ └─┬──┘      device:        letter or digit, [A-Za-z0-9._:-], likewise
//!            class device     at most 253, 63 and 253 bytes
//! ```
//! These are the rules of the interface's own library, which are wider than the text of the
//! specification (a vendor need not be a DNS name).

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// What annotations begin with that ask for devices.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The longest name of a vendor or device, in bytes.
const LONGEST: usize = 253;
/// The longest name of a class, in bytes.
const LONGEST_CLASS: usize = 63;

/// The parts of a device's full name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    pub(crate) vendor: &'a str,
    pub(crate) class: &'a str,
    pub(crate) device: &'a str,
}

/// Whether this is a full name of a device.
///
/// # Errors
/// [`Error::Name`] says what is wrong with it.
pub fn check_name(name: &str) -> Result<()> {
    parse(name).map(|_| ())
}

/// The devices that annotations ask for, in order of the annotations' keys, each once.
///
/// # Errors
/// [`Error::Name`] if a value is no list of full names with commas between them.
pub fn annotated(annotations: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut devices = Vec::new();
    for (_, value) in annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        for name in value.split(',') {
            check_name(name)?;
            if !devices.iter().any(|d| d == name) {
                devices.push(name.to_owned());
            }
        }
    }
    Ok(devices)
}

pub(crate) fn parse(name: &str) -> Result<Parts<'_>> {
    let bad = |problem| Error::Name { name: name.to_owned(), problem };
    let (kind, device) = name.split_once('=').ok_or(bad("there is no `=`"))?;
    let (vendor, class) = kind_of(kind).map_err(bad)?;
    check_device(device).map_err(bad)?;
    Ok(Parts { vendor, class, device })
}

/// Vendor and class of a `vendor/class`.
pub(crate) fn kind_of(kind: &str) -> std::result::Result<(&str, &str), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("it has no vendor and class")?;
    if !word(vendor, LONGEST, false, "._-") {
        return Err("that is no vendor");
    }
    if !word(class, LONGEST_CLASS, false, "._-") {
        return Err("that is no class");
    }
    Ok((vendor, class))
}

pub(crate) fn check_device(name: &str) -> std::result::Result<(), &'static str> {
    if word(name, LONGEST, true, "._-:") { Ok(()) } else { Err("that is no name of a device") }
}

fn word(text: &str, longest: usize, digit_first: bool, between: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || (digit_first && c.is_ascii_digit());
    text.len() <= longest
        && text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_are_some() {
        for (name, vendor, class, device) in [
            ("vendor.com/gpu=gpu0", "vendor.com", "gpu", "gpu0"),
            ("v/c=0", "v", "c", "0"),
            ("nvidia.com/gpu=GPU-4cf8db2d:1", "nvidia.com", "gpu", "GPU-4cf8db2d:1"),
            ("a_b-c.d/e.f_g-h=1.2", "a_b-c.d", "e.f_g-h", "1.2"),
        ] {
            assert_eq!(parse(name).unwrap(), Parts { vendor, class, device });
        }
    }

    #[test]
    fn names_that_are_none() {
        let long = format!("v/{}=d", "c".repeat(64));
        for name in [
            "",
            "gpu0",
            "vendor/gpu",
            "vendor=gpu0",
            "/c=d",
            "v/=d",
            "v/c=",
            "1v/c=d",
            "v/1c=d",
            "v/c=-d",
            "v/c=d-",
            "v-/c=d",
            "v/c=d d",
            "v/c/e=d",
            "v/c=d=e",
            "v/c=d/e",
            "v/ç=d",
            "v/c=d\n",
            "v:x/c=d",
            "/dev/null",
            "v/c=d,e",
            &long,
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn annotations_are_lists() {
        let of = |pairs: &[(&str, &str)]| {
            annotated(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        assert_eq!(of(&[("a", "nonsense")]).unwrap(), [""; 0]);
        let got = of(&[("cdi.k8s.io/b", "v/c=2,v/c=1"), ("cdi.k8s.io/a", "v/c=1,w/c=3")]).unwrap();
        assert_eq!(got, ["v/c=1", "w/c=3", "v/c=2"]);
        for bad in ["", "v/c=1,", "v/c=1, v/c=2", "gpu0"] {
            let error = of(&[("cdi.k8s.io/a", bad)]).unwrap_err();
            assert!(matches!(error, Error::Name { .. }), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_has_its_parts_again(name in ".{0,40}|[a-z0-9./=:_-]{0,20}") {
            if let Ok(Parts { vendor, class, device }) = parse(&name) {
                prop_assert_eq!(format!("{vendor}/{class}={device}"), name);
            }
        }
    }
}
