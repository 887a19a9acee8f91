//! Kubernetes' quantities, as far as one is compared with another.

/// A quantity as in `100m`, `1.5`, `64Mi` or `1e3`, in thousandths; `None` when it is not one, negative, or beyond all
/// that a node has.
pub(super) fn read(text: &str) -> Option<u128> {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + part.len() == 0 || whole.len() > 15 || part.len() > 9 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let nanos = digits(whole)? * 1_000_000_000 + digits(&format!("{part:0<9}"))?;
    let (times, per) = scale(unit)?;
    // Kubernetes rounds up, too.
    nanos.checked_mul(times)?.checked_mul(1_000).map(|thousandths| thousandths.div_ceil(per * 1_000_000_000))
}

/// By what a unit multiplies and divides.
fn scale(unit: &str) -> Option<(u128, u128)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    const SMALL: [&str; 3] = ["m", "u", "n"];
    let place = |units: &[&str]| units.iter().position(|of| *of == unit).map(|at| at as u32 + 1);
    if unit.is_empty() {
        Some((1, 1))
    } else if let Some(place) = place(&BINARY) {
        Some((1024_u128.pow(place), 1))
    } else if let Some(place) = place(&DECIMAL) {
        Some((1000_u128.pow(place), 1))
    } else if let Some(place) = place(&SMALL) {
        Some((1, 1000_u128.pow(place)))
    } else {
        let exponent = unit.strip_prefix(['e', 'E'])?;
        let place =
            exponent.trim_start_matches(['+', '-']).parse::<u32>().ok().filter(|place| *place <= 18)?;
        let power = 10_u128.pow(place);
        Some(if exponent.starts_with('-') { (1, power) } else { (power, 1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, thousandths) in [
            ("0", 0),
            ("1", 1_000),
            ("100m", 100),
            ("0.1", 100),
            (".5", 500),
            ("1.", 1_000),
            ("1Ki", 1_024_000),
            ("64Mi", 67_108_864_000),
            ("1.5G", 1_500_000_000_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("5e-1", 500),
            ("1E", 1_000_000_000_000_000_000_000),
            ("1n", 1),
        ] {
            assert_eq!(read(text), Some(thousandths), "{text}");
        }
        for text in
            ["", ".", "-1", "+1", "1 Mi", "1mi", "1KI", "Mi", "1.2.3", "1e99", "1e", "9999999999999999", "١"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn no_quantity_panics() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = read(&String::from_utf8_lossy(bytes));
        });
    }
}
