//! A raster for pictures: painted by pixel and with text, encoded as PNG.

use std::convert::Infallible;

use embedded_graphics::mono_font::iso_8859_1::FONT_9X18;
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::text::{Baseline, Text};

use crate::error::{Error, Result};

/// Red, green, blue.
pub(super) type Colour = [u8; 3];

const FONT: MonoFont<'static> = FONT_9X18;

/// Width of a character in pixels.
pub(super) const CHARACTER: usize = FONT.character_size.width as usize;
/// Height of a line of text in pixels.
pub(super) const LINE: usize = FONT.character_size.height as usize + 4;

/// Pixels of one picture, row by row from the top.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Colour>,
}

impl Canvas {
    /// A black picture.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[0; 3]; width * height] }
    }

    /// Paints the pixel at `x` from the left and `y` from the top; ignores pixels outside the picture.
    pub fn paint(&mut self, x: usize, y: usize, colour: Colour) {
        if x < self.width && y < self.height {
            self.pixels[y * self.width + x] = colour;
        }
    }

    /// Writes one line with its upper left corner at (`x`, `y`). Characters outside ISO 8859-1 become question marks.
    pub fn write(&mut self, text: &str, x: usize, y: usize, [r, g, b]: Colour) {
        let style = MonoTextStyle::new(&FONT, Rgb888::new(r, g, b));
        let Ok(_) = Text::with_baseline(text, Point::new(x as i32, y as i32), style, Baseline::Top).draw(self);
    }

    /// The picture as the bytes of a PNG file.
    ///
    /// # Errors
    /// [`Error::Bug`] where the encoder rejects the picture's size.
    pub fn encode(&self) -> Result<Vec<u8>> {
        lodepng::encode24(&self.pixels, self.width, self.height)
            .map_err(|e| Error::Bug(format!("encoding {} x {} pixels as PNG: {e}", self.width, self.height)))
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            if let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) {
                self.paint(x, y, [colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// `text` in lines of at most `width` characters, broken at spaces; longer words are broken anywhere.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        if length > 0 && length + 1 + letters.len() > width {
            lines.push(std::mem::take(&mut line));
            length = 0;
        }
        for (i, letter) in letters.into_iter().enumerate() {
            if length == width {
                lines.push(std::mem::take(&mut line));
                length = 0;
            } else if i == 0 && length > 0 {
                line.push(' ');
                length += 1;
            }
            line.push(letter);
            length += 1;
        }
    }
    lines.extend((length > 0).then_some(line));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_long_words_anywhere() {
        assert_eq!(wrap("to MNI space, 2 mm", 8), ["to MNI", "space, 2", "mm"]);
        assert_eq!(wrap("sub-000000001 ok", 6), ["sub-00", "000000", "1 ok"]);
        assert_eq!(wrap(" \n", 6), Vec::<String>::new());
    }
}
