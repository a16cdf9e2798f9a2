//! Signals by the names of the CRI and of images.

use api_cri::v1::ContainerConfig;
use registry::image::ContainerDefaults;

use crate::error::{Error, Result};

/// The number of a signal that the CRI or an image names; SIGTERM where neither does.
pub(crate) fn stop_signal(config: &ContainerConfig, image: &ContainerDefaults) -> Result<i32> {
    use api_cri::v1::Signal;
    let asked = Signal::try_from(config.stop_signal).map_err(|_| {
        Error::invalid(format!("stop_signal: unknown value {}", config.stop_signal))
    })?;
    let name = match asked {
        Signal::RuntimeDefault => image.stop_signal.as_str(),
        other => other.as_str_name().trim_start_matches("SIGNAL_"),
    };
    Ok(signal_number(name).unwrap_or(15))
}

fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str| -> Option<i32> {
        match rest {
            "" => Some(0),
            r => r
                .trim_start_matches("PLUS")
                .trim_start_matches("MINUS")
                .trim_start_matches(['+', '-'])
                .parse()
                .ok(),
        }
    };
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return Some(34 + offset(rest)?);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return Some(64 - offset(rest)?);
    }
    match short {
        "CLD" => Some(17),
        "IOT" => Some(6),
        "POLL" => Some(29),
        _ => format!("SIG{short}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_every_name() {
        for (name, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("SIGRTMINPLUS3", 37),
            ("SIGRTMAX", 64),
            ("SIGRTMAXMINUS14", 50),
            ("SIGIOT", 6),
            ("SIGPOLL", 29),
        ] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        assert_eq!(signal_number("SIGNOPE"), None);
        assert_eq!(signal_number("0"), None);
        let config = |stop_signal| ContainerConfig { stop_signal, ..Default::default() };
        let image = ContainerDefaults { stop_signal: "SIGQUIT".into(), ..Default::default() };
        assert_eq!(stop_signal(&config(0), &image).unwrap(), 3);
        assert_eq!(stop_signal(&config(8), &image).unwrap(), 1);
        assert!(stop_signal(&config(99), &image).is_err());
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number() {
        for n in 1..=65 {
            let signal = api_cri::v1::Signal::try_from(n).unwrap();
            let name = signal.as_str_name().trim_start_matches("SIGNAL_");
            assert!(signal_number(name).is_some(), "{name}");
        }
    }
}
