//! Mutations of DER that know its structure: the tree is changed and written again, so that most of the result can
//! still be read and the change sits deep inside.

/// Elements to put in between: NULL, FALSE, TRUE, 0, an empty SEQUENCE and SET, an OCTET STRING, the OID of alternative
/// names, a text, an empty URI, an empty `[0]`, a BIT STRING.
const SMALL: &[&[u8]] = &[
    &[0x05, 0x00],
    &[0x01, 0x01, 0x00],
    &[0x01, 0x01, 0xff],
    &[0x02, 0x01, 0x00],
    &[0x30, 0x00],
    &[0x31, 0x00],
    &[0x04, 0x02, 0x30, 0x00],
    &[0x06, 0x03, 0x55, 0x1d, 0x11],
    &[0x0c, 0x01, b'a'],
    &[0x86, 0x00],
    &[0xa0, 0x00],
    &[0x03, 0x02, 0x07, 0x80],
];
/// Tags that stand in certificates.
const TAGS: &[u8] = &[
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0a, 0x0c, 0x13, 0x16, 0x17, 0x18, 0x1e, 0x30, 0x31, 0x80, 0x81,
    0x82, 0x83, 0x84, 0x86, 0x87, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4,
];
/// As deep as trees are read; certificates have about ten levels.
const DEPTH: usize = 16;

/// Numbers from a seed (SplitMix64), so that a run can be replayed.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to just below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).expect("it is below a usize")
    }

    fn octet(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// One element of DER, or bytes that are none.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    tag: u8,
    length: Length,
    body: Body,
}

/// How the length is written.
#[derive(Clone, Copy, Debug)]
enum Length {
    Der,
    Padded,
    Indefinite,
    Wrong(usize),
}

#[derive(Clone, Debug)]
enum Body {
    /// Uninterpreted.
    Octets(Vec<u8>),
    /// Elements, behind `prefix` octets that are none (the unused bits of a BIT STRING).
    Elements { prefix: Vec<u8>, children: Vec<Node> },
}

impl Node {
    /// Reads `bytes` as exactly one element. Strings that hold elements are read as such.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut elements = elements(bytes, 0)?;
        if elements.len() == 1 { elements.pop() } else { None }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut content = Vec::new();
        match &self.body {
            Body::Octets(octets) => content.extend_from_slice(octets),
            Body::Elements { prefix, children } => {
                content.extend_from_slice(prefix);
                children.iter().for_each(|child| child.write(&mut content));
            }
        }
        out.push(self.tag);
        match self.length {
            Length::Der => write_length(out, content.len(), 0),
            Length::Padded => write_length(out, content.len(), 3),
            Length::Indefinite => out.push(0x80),
            Length::Wrong(length) => write_length(out, length, 0),
        }
        out.append(&mut content);
        if matches!(self.length, Length::Indefinite) {
            out.extend([0, 0]);
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    pub(crate) fn children(&self) -> &[Self] {
        match &self.body {
            Body::Octets(_) => &[],
            Body::Elements { children, .. } => children,
        }
    }

    /// How many elements there are, with this one.
    fn count(&self) -> usize {
        1 + self.children().iter().map(Self::count).sum::<usize>()
    }

    /// The element of that number, counted from here in the order of writing.
    fn at(&mut self, number: usize) -> &mut Self {
        if number == 0 {
            return self;
        }
        let mut left = number - 1;
        if let Body::Elements { children, .. } = &mut self.body {
            for child in children {
                let count = child.count();
                if left < count {
                    return child.at(left);
                }
                left -= count;
            }
        }
        unreachable!("numbers are below the count")
    }

    /// Changes one element below this one, or this one.
    pub(crate) fn mutate(&mut self, random: &mut Random) {
        let count = self.count();
        let donor = self.at(random.below(count)).clone();
        // Far from the root there is more to change, and less that is refused at once.
        let number = if count > 1 { 1 + random.below(count - 1) } else { 0 };
        self.at(number).change(random, donor);
    }

    fn change(&mut self, random: &mut Random, donor: Self) {
        match random.below(10) {
            0 => self.tag = *random.pick(TAGS),
            1 => self.tag ^= 1 << random.below(8),
            2 => self.length = Length::Padded,
            3 => self.length = Length::Indefinite,
            4 => self.length = Length::Wrong(random.below(300)),
            5 => *self = donor,
            6 => self.body = Body::Octets(Vec::new()),
            _ => match &mut self.body {
                Body::Octets(octets) => change_octets(octets, random),
                Body::Elements { prefix, children } => change_children(prefix, children, donor, random),
            },
        }
    }
}

fn change_octets(octets: &mut Vec<u8>, random: &mut Random) {
    let position = random.below(octets.len());
    match (random.below(7), octets.is_empty()) {
        (0, _) => octets.push(random.octet()),
        (1, _) => octets.insert(0, *random.pick(&[0x00, 0xff, 0x80])),
        (_, true) => octets.push(0),
        (2, _) => drop(octets.pop()),
        (3, _) => drop(octets.remove(position)),
        (4, _) => octets[position] = random.octet(),
        (5, _) => octets[position] = octets[position].wrapping_add(1),
        _ => octets[position] ^= 1 << random.below(8),
    }
}

fn change_children(prefix: &mut [u8], children: &mut Vec<Node>, donor: Node, random: &mut Random) {
    let position = random.below(children.len());
    let other = random.below(children.len());
    match (random.below(7), children.is_empty()) {
        (0, false) => drop(children.remove(position)),
        (1, false) => children.insert(position, children[other].clone()),
        (2, false) => children.swap(position, other),
        (3, false) => children[position] = donor,
        (4, _) => children.insert(position, donor),
        (5, _) if !prefix.is_empty() => prefix[0] = random.octet(),
        _ => {
            let small: &&[u8] = random.pick(SMALL);
            let small = Node::read(small).expect("it is one element");
            children.insert(position, small);
        }
    }
}

fn elements(mut bytes: &[u8], depth: usize) -> Option<Vec<Node>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (tag, content, rest) = split(bytes)?;
        let inner = if depth < DEPTH { inside(tag, content, depth + 1) } else { None };
        let body = inner.unwrap_or_else(|| Body::Octets(content.to_vec()));
        found.push(Node { tag, length: Length::Der, body });
        bytes = rest;
    }
    Some(found)
}

/// What is inside of an element, if that is elements.
fn inside(tag: u8, content: &[u8], depth: usize) -> Option<Body> {
    let (prefix, content) = match tag {
        0x03 => content.split_at_checked(1).filter(|(unused, _)| *unused == [0])?,
        0x04 => (&[][..], content),
        constructed if constructed & 0x20 != 0 => (&[][..], content),
        _ => return None,
    };
    let children = elements(content, depth)?;
    if children.is_empty() && tag & 0x20 == 0 {
        return None;
    }
    Some(Body::Elements { prefix: prefix.to_vec(), children })
}

fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (octets.iter().fold(0, |value, octet| value << 8 | usize::from(*octet)), rest)
        }
        0x80 | 0x84..=0xff => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// At least `least` octets for the number; 0 is the form of DER.
fn write_length(out: &mut Vec<u8>, length: usize, least: usize) {
    let octets = (length as u64).to_be_bytes();
    let needed = octets.iter().position(|octet| *octet != 0).map_or(1, |zeros| 8 - zeros);
    if least == 0 && length < 0x80 {
        out.push(octets[7]);
        return;
    }
    let count = needed.max(least);
    out.push(0x80 | u8::try_from(count).expect("at most eight"));
    out.extend_from_slice(&octets[8 - count..]);
}
