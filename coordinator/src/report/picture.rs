//! The lecture's figure: every misclassified image, dark on light, with the correct label in its upper right corner and
//! the vote in its lower right corner.

use image::{ExtendedColorType, GrayImage, ImageEncoder, Luma, codecs::png::PngEncoder};
use plurality_common::idx::Images;

use super::{Misclassified, Report, glyphs};

/// Edge in pixels that an image is drawn with if there are few: large enough to judge a digit by eye.
const EDGE_FEW_PX: u32 = 84;
/// The same for many, so that the picture of a badly trained ensemble can still be opened.
const EDGE_MANY_PX: u32 = 28;
/// Up to here an ensemble's errors are few.
const FEW: usize = 500;
/// Most images drawn: what more there are would make a picture that fits into no message, and an ensemble so bad needs
/// none.
pub const DRAWN_MAX: usize = 5_000;
/// White pixels around a cell.
const MARGIN_PX: u32 = 8;
/// Cells a row while there are few; with more the picture becomes about square.
const CELLS_PER_ROW_MIN: u32 = 8;
/// The lightest grey of the background, as on paper.
const PAPER: Luma<u8> = Luma([255]);
/// The ink of the correct label.
const INK: Luma<u8> = Luma([0]);
/// The ink of the vote: lighter, so that the two are told apart without reading the legend.
const INK_VOTE: Luma<u8> = Luma([110]);

/// Sizes in pixels.
struct Layout {
    scale: u32,
    glyph_scale: u32,
    image_columns: u32,
    image_rows: u32,
    label_columns: u32,
    cells_per_row: u32,
    caption_rows: u32,
}

/// Draws the misclassified images of `report`, in the order of the test set, below a caption `errors/images`. Returns a
/// PNG in shades of grey. Without errors there is only the caption; of more than [`DRAWN_MAX`] the first are drawn.
///
/// # Panics
/// When the report names images beyond `test_images`: they are those it was made from.
pub fn misclassified_png(report: &Report, test_images: &Images) -> Vec<u8> {
    let drawn = &report.misclassified[..report.misclassified.len().min(DRAWN_MAX)];
    let layout = Layout::of(drawn, test_images);
    let caption = format!("{}/{}", report.misclassified.len(), report.ensemble.majority_vote.total);
    let cells = drawn.len() as u32;
    let columns = cells.min(layout.cells_per_row);
    let rows = cells.div_ceil(layout.cells_per_row);
    let caption_columns = glyphs::width(&caption, layout.glyph_scale) + 2 * MARGIN_PX;
    let width = (columns * layout.cell_columns() + MARGIN_PX).max(caption_columns);
    let height = rows * layout.cell_rows() + layout.caption_rows;
    let mut picture = GrayImage::from_pixel(width, height, PAPER);
    write(&mut picture, &caption, layout.glyph_scale, MARGIN_PX, MARGIN_PX, INK);
    for (cell, misclassified) in (0..).zip(drawn) {
        let left = cell % layout.cells_per_row * layout.cell_columns() + MARGIN_PX;
        let top = cell / layout.cells_per_row * layout.cell_rows() + layout.caption_rows;
        layout.draw_cell(&mut picture, left, top, misclassified, test_images);
    }
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(picture.as_raw(), width, height, ExtendedColorType::L8)
        .expect("a picture that is not empty can be encoded into memory");
    png
}

impl Layout {
    fn of(drawn: &[Misclassified], test_images: &Images) -> Self {
        let edge_px = if drawn.len() <= FEW { EDGE_FEW_PX } else { EDGE_MANY_PX };
        let (rows, columns) = (test_images.rows as u32, test_images.columns as u32);
        let scale = (edge_px / rows.max(columns)).max(1);
        let glyph_scale = (edge_px / 42).max(1);
        let highest = drawn.iter().map(|each| each.label.max(each.vote)).max().unwrap_or(0);
        let label_columns = glyphs::width(&highest.to_string(), glyph_scale);
        let mut layout = Self {
            scale,
            glyph_scale,
            image_columns: columns * scale,
            image_rows: (rows * scale).max(2 * (glyphs::ROWS + 1) * glyph_scale),
            label_columns,
            cells_per_row: CELLS_PER_ROW_MIN,
            caption_rows: glyphs::ROWS * glyph_scale + 3 * MARGIN_PX,
        };
        let cells = drawn.len() as f64;
        let wide = (cells * f64::from(layout.cell_rows()) / f64::from(layout.cell_columns())).sqrt().ceil() as u32;
        layout.cells_per_row = wide.max(CELLS_PER_ROW_MIN);
        layout
    }

    fn cell_columns(&self) -> u32 {
        self.image_columns + self.label_columns + 2 * self.glyph_scale + MARGIN_PX
    }

    fn cell_rows(&self) -> u32 {
        self.image_rows + MARGIN_PX
    }

    fn draw_cell(&self, picture: &mut GrayImage, left: u32, top: u32, cell: &Misclassified, images: &Images) {
        let image = images.image(cell.index);
        for y in 0..images.rows as u32 * self.scale {
            for x in 0..self.image_columns {
                let source = (y / self.scale) as usize * images.columns + (x / self.scale) as usize;
                // The files have white digits on black; paper has it the other way round.
                picture.put_pixel(left + x, top + y, Luma([255 - image[source]]));
            }
        }
        let right = left + self.image_columns + self.glyph_scale + self.label_columns;
        for (label, y, ink) in
            [(cell.label, top, INK), (cell.vote, top + self.image_rows - glyphs::ROWS * self.glyph_scale, INK_VOTE)]
        {
            let text = label.to_string();
            write(picture, &text, self.glyph_scale, right - glyphs::width(&text, self.glyph_scale), y, ink);
        }
    }
}

fn write(picture: &mut GrayImage, text: &str, scale: u32, left: u32, top: u32, ink: Luma<u8>) {
    glyphs::draw(text, scale, |x, y| picture.put_pixel(left + x, top + y, ink));
}
