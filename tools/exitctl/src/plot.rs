//! Pictures of boxes, lines and words, written as SVG or as PNG, by the file's name.

use ab_glyph::{Font, FontVec, PxScale, ScaleFont, point};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// Red, green, blue.
pub(crate) type Colour = [u8; 3];
pub(crate) const INK: Colour = [0x22, 0x22, 0x22];
pub(crate) const FAINT: Colour = [0xdd, 0xdd, 0xdd];
/// Told apart by people who see colours differently too (Okabe and Ito).
pub(crate) const PALETTE: [Colour; 8] = [
    [0xd5, 0x5e, 0x00],
    [0xe6, 0x9f, 0x00],
    [0xf0, 0xe4, 0x42],
    [0x99, 0x99, 0x99],
    [0x56, 0xb4, 0xe9],
    [0x00, 0x9e, 0x73],
    [0x00, 0x72, 0xb2],
    [0xcc, 0x79, 0xa7],
];

/// Where a word's place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Debug)]
enum Shape {
    Box {
        x: f32,
        y: f32,
        w: f32,
        h: f32,
        colour: Colour,
    },
    /// `y` is the line that letters stand on.
    Words {
        x: f32,
        y: f32,
        size: f32,
        anchor: Anchor,
        text: String,
    },
}

/// A picture on white.
#[derive(Debug)]
pub(crate) struct Picture {
    width: f32,
    height: f32,
    shapes: Vec<Shape>,
}

/// PNG has so many pixels for one of SVG's, for screens and beamers.
const SHARP: f32 = 2.0;
/// Where Debian's and Fedora's packages have a font.
const FONTS: [&str; 4] = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
    "/usr/share/fonts/truetype/liberation2/LiberationSans-Regular.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
];

/// What a picture is written as.
enum Kind {
    Svg,
    Png,
}

impl Kind {
    /// As the name's ending says.
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => bail!("{}: a picture's name ends with .svg or .png", path.display()),
        }
    }
}

/// A picture's file, on the command line.
pub(crate) fn file(name: &str) -> Result<PathBuf> {
    Kind::of(Path::new(name)).map(|_| name.into())
}

impl Picture {
    pub(crate) fn new(width: f32, height: f32) -> Self {
        Self { width, height, shapes: Vec::new() }
    }

    pub(crate) fn rectangle(&mut self, x: f32, y: f32, w: f32, h: f32, colour: Colour) {
        self.shapes.push(Shape::Box { x, y, w: w.max(0.0), h, colour });
    }

    pub(crate) fn words(&mut self, x: f32, y: f32, size: f32, anchor: Anchor, text: impl Into<String>) {
        self.shapes.push(Shape::Words { x, y, size, anchor, text: text.into() });
    }

    /// In the file's form.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        match Kind::of(path)? {
            Kind::Svg => fs::write(path, self.svg()).with_context(|| path.display().to_string()),
            Kind::Png => self.png(path),
        }
    }

    fn svg(&self) -> String {
        let (w, h) = (self.width, self.height);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"DejaVu Sans, Liberation Sans, sans-serif\">\n\
             <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n"
        );
        for shape in &self.shapes {
            let _ = match shape {
                Shape::Box { x, y, w, h, colour } => writeln!(
                    text,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{}\"/>",
                    hex(*colour)
                ),
                Shape::Words { x, y, size, anchor, text: words } => {
                    let anchor = match anchor {
                        Anchor::Start => "start",
                        Anchor::Middle => "middle",
                        Anchor::End => "end",
                    };
                    writeln!(
                        text,
                        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{}\">{}</text>",
                        hex(INK),
                        escaped(words)
                    )
                }
            };
        }
        text + "</svg>\n"
    }

    fn png(&self, path: &Path) -> Result<()> {
        let font = FONTS.iter().find_map(|font| FontVec::try_from_vec(fs::read(font).ok()?).ok());
        let font = font.context("a PNG needs a font: install fonts-dejavu-core, or write an .svg")?;
        let (w, h) = ((self.width * SHARP) as u32, (self.height * SHARP) as u32);
        let mut pixels = Pixels { w: w as usize, h: h as usize, rgb: vec![0xff; (w * h * 3) as usize] };
        for shape in &self.shapes {
            match shape {
                Shape::Box { x, y, w, h, colour } => pixels.rectangle([*x, *y, *w, *h], *colour),
                Shape::Words { x, y, size, anchor, text } => {
                    pixels.words(&font, [*x, *y, *size], *anchor, text);
                }
            }
        }
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), w, h);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&pixels.rgb)?;
        Ok(())
    }
}

fn hex([r, g, b]: Colour) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

struct Pixels {
    w: usize,
    h: usize,
    rgb: Vec<u8>,
}

impl Pixels {
    /// The colour over what is there, as far as it covers the pixel.
    fn dot(&mut self, x: i64, y: i64, colour: Colour, cover: f32) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
        if x >= self.w || y >= self.h {
            return;
        }
        let at = (y * self.w + x) * 3;
        for (old, new) in self.rgb.iter_mut().skip(at).zip(colour) {
            let mixed = f32::from(*old) + (f32::from(new) - f32::from(*old)) * cover.clamp(0.0, 1.0);
            *old = mixed.round() as u8;
        }
    }

    fn rectangle(&mut self, place: [f32; 4], colour: Colour) {
        let [x, y, w, h] = place.map(|side| side * SHARP);
        let cover =
            |from: f32, to: f32, at: i64| (to.min(at as f32 + 1.0) - from.max(at as f32)).clamp(0.0, 1.0);
        for py in y.floor() as i64..(y + h).ceil() as i64 {
            for px in x.floor() as i64..(x + w).ceil() as i64 {
                self.dot(px, py, colour, cover(x, x + w, px) * cover(y, y + h, py));
            }
        }
    }

    fn words(&mut self, font: &FontVec, [x, y, size]: [f32; 3], anchor: Anchor, text: &str) {
        // SVG's size is that of the em, ab_glyph's that of a line.
        let em = font.units_per_em().unwrap_or(1000.0);
        let scaled = font.as_scaled(PxScale::from(size * SHARP * font.height_unscaled() / em));
        let width: f32 = text.chars().map(|c| scaled.h_advance(scaled.glyph_id(c))).sum();
        let mut pen = x * SHARP
            - match anchor {
                Anchor::Start => 0.0,
                Anchor::Middle => width / 2.0,
                Anchor::End => width,
            };
        for c in text.chars() {
            let mut glyph = scaled.scaled_glyph(c);
            glyph.position = point(pen, y * SHARP);
            pen += scaled.h_advance(glyph.id);
            if let Some(outline) = font.outline_glyph(glyph) {
                let corner = outline.px_bounds().min;
                outline.draw(|dx, dy, cover| {
                    self.dot(corner.x as i64 + i64::from(dx), corner.y as i64 + i64::from(dy), INK, cover);
                });
            }
        }
    }
}

/// A round number of at least an eighth of `most`, for an axis.
pub(crate) fn step(most: f64) -> f64 {
    let power = 10f64.powf((most / 8.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|n| *n >= most / 8.0).unwrap_or(power * 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words cannot end the element that they stand in.
    #[test]
    fn words_are_words() {
        let mut p = Picture::new(10.0, 10.0);
        p.words(0.0, 0.0, 5.0, Anchor::Start, "<a> & b");
        assert!(p.svg().contains(">&lt;a&gt; &amp; b</text>"));
        assert!(p.save(Path::new("/nowhere/x.gif")).unwrap_err().to_string().contains(".svg or .png"));
    }

    /// A box covers the pixels that it covers, half of one by half.
    #[test]
    fn boxes_cover_pixels() {
        let mut pixels = Pixels { w: 4, h: 1, rgb: vec![0xff; 12] };
        pixels.rectangle([0.25, 0.0, 1.0, 0.5], [0, 0, 0]);
        assert_eq!(pixels.rgb, [128, 128, 128, 0, 0, 0, 128, 128, 128, 255, 255, 255]);
        pixels.rectangle([-5.0, -5.0, 100.0, 100.0], [9, 9, 9]);
        assert!(pixels.rgb.iter().all(|c| *c == 9), "what is outside is left out");
    }

    #[test]
    fn axes_are_round() {
        assert_eq!([step(9.0), step(1000.0), step(6100.0)], [2.0, 200.0, 1000.0]);
    }
}
