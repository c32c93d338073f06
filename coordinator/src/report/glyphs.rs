//! Digits for pictures: five columns by seven rows, drawn by hand, because a font file would be a dependency for eleven
//! signs.

/// Columns of a glyph.
pub const COLUMNS: u32 = 5;
/// Rows of a glyph.
pub const ROWS: u32 = 7;
/// Columns from one glyph to the next.
pub const ADVANCE: u32 = COLUMNS + 1;

const DIGITS: [[&[u8; 5]; 7]; 10] = [
    [b".###.", b"#...#", b"#..##", b"#.#.#", b"##..#", b"#...#", b".###."],
    [b"..#..", b".##..", b"..#..", b"..#..", b"..#..", b"..#..", b".###."],
    [b".###.", b"#...#", b"....#", b"..##.", b".#...", b"#....", b"#####"],
    [b".###.", b"#...#", b"....#", b"..##.", b"....#", b"#...#", b".###."],
    [b"...#.", b"..##.", b".#.#.", b"#..#.", b"#####", b"...#.", b"...#."],
    [b"#####", b"#....", b"####.", b"....#", b"....#", b"#...#", b".###."],
    [b".###.", b"#....", b"#....", b"####.", b"#...#", b"#...#", b".###."],
    [b"#####", b"....#", b"...#.", b"...#.", b"..#..", b"..#..", b"..#.."],
    [b".###.", b"#...#", b"#...#", b".###.", b"#...#", b"#...#", b".###."],
    [b".###.", b"#...#", b"#...#", b".####", b"....#", b"....#", b".###."],
];
const SLASH: [&[u8; 5]; 7] = [b"....#", b"....#", b"...#.", b"..#..", b".#...", b"#....", b"#...."];

/// Returns the width in pixels of `text` at `scale` pixels a dot.
pub fn width(text: &str, scale: u32) -> u32 {
    (text.chars().count() as u32 * ADVANCE).saturating_sub(1) * scale
}

/// Calls `dot` with each black pixel of `text`, from its upper left corner. Signs other than digits and `/` are blanks.
pub fn draw(text: &str, scale: u32, mut dot: impl FnMut(u32, u32)) {
    for (position, sign) in text.chars().enumerate() {
        let Some(rows) = rows_of(sign) else { continue };
        for (y, row) in (0..).zip(rows) {
            for (x, _) in (0..).zip(row).filter(|&(_, &mark)| mark == b'#') {
                let left = (position as u32 * ADVANCE + x) * scale;
                (0..scale * scale).for_each(|i| dot(left + i % scale, y * scale + i / scale));
            }
        }
    }
}

fn rows_of(sign: char) -> Option<[&'static [u8; 5]; 7]> {
    match sign.to_digit(10) {
        Some(digit) => Some(DIGITS[digit as usize]),
        None => (sign == '/').then_some(SLASH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_text_stays_within_its_width_and_seven_rows() {
        for scale in [1, 3] {
            let mut dots = Vec::new();
            draw("10/7 ", scale, |x, y| dots.push((x, y)));
            assert!(dots.iter().all(|&(x, y)| x < width("10/7", scale) && y < ROWS * scale));
            assert_eq!(dots.len() as u32 % (scale * scale), 0);
        }
    }

    #[test]
    fn no_two_digits_look_alike() {
        for (digit, rows) in DIGITS.iter().enumerate() {
            assert!(!DIGITS[..digit].contains(rows), "{digit} looks like another");
        }
    }
}
