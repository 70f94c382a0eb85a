// Reads PTX as nvcc writes it for this project's kernels. What it does not know is an error with the line.
#pragma once
#include <cctype>
#include <cstdlib>
#include <stdexcept>

#include "program.h"

namespace ptx {

class Parser {
 public:
  Parser(const std::string& text, std::unordered_map<std::string, Function*>& functions)
      : text_(text), functions_(functions) {}

  void run() {
    while (skip(), at_ < text_.size()) {
      if (text_[at_] != '.') fail("a directive was expected");
      const std::string head = word();
      if (head == ".version" || head == ".target" || head == ".address_size") {
        at_ = text_.find('\n', at_);
      } else if (head == ".extern" || head == ".global") {
        const std::string rest = until(';');
        if (rest.find(".shared") == std::string::npos) fail("memory other than shared: " + rest);
        shared_ = last_name(rest.substr(0, rest.find('[')));
      } else if (head == ".visible" || head == ".weak") {
        continue;
      } else if (head == ".func" || head == ".entry") {
        function(head == ".entry");
      } else {
        fail("unknown directive " + head);
      }
    }
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error("PTX: " + why + " in " + (now_ ? now_->name : "the module"));
  }

  void skip() {
    for (;;) {
      while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
      if (text_.compare(at_, 2, "//") == 0)
        at_ = text_.find('\n', at_);
      else
        return;
    }
  }
  std::string word() {
    skip();
    const size_t from = at_;
    while (at_ < text_.size() && !std::isspace(static_cast<unsigned char>(text_[at_])) &&
           std::string("(){};,").find(text_[at_]) == std::string::npos)
      ++at_;
    return text_.substr(from, at_ - from);
  }
  // Without comments and line ends.
  std::string until(char end) {
    std::string found;
    for (; at_ < text_.size() && text_[at_] != end; ++at_) {
      if (text_.compare(at_, 2, "//") == 0) at_ = text_.find('\n', at_);
      found += std::isspace(static_cast<unsigned char>(text_[at_])) ? ' ' : text_[at_];
    }
    ++at_;
    return found;
  }
  static std::vector<std::string> split(const std::string& text, const char* at) {
    std::vector<std::string> parts(1);
    int depth = 0;
    for (char c : text) {
      depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
      if (depth == 0 && std::string(at).find(c) != std::string::npos)
        parts.emplace_back();
      else
        parts.back() += c;
    }
    std::vector<std::string> kept;
    for (std::string& part : parts) {
      const size_t first = part.find_first_not_of(" \t\n"), last = part.find_last_not_of(" \t\n");
      if (first != std::string::npos) kept.push_back(part.substr(first, last - first + 1));
    }
    return kept;
  }
  static std::string last_name(const std::string& text) { return split(text, " ").back(); }

  // .param .align 8 .b8 name[584]: its name, and its place behind `end`, which it moves.
  static std::string place(const std::string& text, int& end, Parameter& to) {
    int align = 0, element = 1, count = 1;
    std::string name;
    const std::vector<std::string> words = split(text, " ");
    for (size_t i = 0; i < words.size(); ++i) {
      if (words[i] == ".align")
        align = std::atoi(words[++i].c_str());
      else if (words[i][0] == '.' && type_of(words[i].substr(1)) != Type::none)
        element = bytes_of(type_of(words[i].substr(1)));
      else if (words[i][0] != '.')
        name = words[i];
    }
    const size_t bracket = name.find('[');
    if (bracket != std::string::npos) count = std::atoi(name.c_str() + bracket + 1), name.resize(bracket);
    if (!align) align = element;
    to = {(end + align - 1) / align * align, element * count};
    end = to.offset + to.bytes;
    return name;
  }

  void function(bool entry) {
    std::string head;
    for (; text_[at_] != '{' && text_[at_] != ';'; ++at_) {
      if (text_.compare(at_, 2, "//") == 0) at_ = text_.find('\n', at_);
      head += text_[at_] == '\n' || text_[at_] == '\t' ? ' ' : text_[at_];
    }
    const bool body = text_[at_++] == '{';
    std::string returned;
    size_t open = head.find_first_not_of(' ');
    if (head[open] == '(') {
      const size_t close = head.find(')');
      returned = head.substr(open + 1, close - open - 1), head = head.substr(close + 1);
    }
    open = head.find('(');
    const std::string name = last_name(head.substr(0, open));
    Function*& f = functions_[name];
    if (!f) f = new Function;
    if (!body) return;
    now_ = f, f->name = name, f->entry = entry;
    registers_.clear(), frame_.clear(), params_.clear(), labels_.clear(), branches_.clear();
    if (open != std::string::npos)
      for (const std::string& text : split(head.substr(open + 1, head.find(')', open) - open - 1), ",")) {
        Parameter p;
        params_[place(text, f->parameter_bytes, p)] = p;
        f->parameters.push_back(p);
      }
    if (!returned.empty()) {
      Parameter p;
      params_[place(returned, f->parameter_bytes, p)] = p;
      f->returns = true, f->result = p;
    }
    for (int depth = 1; depth > 0;) {
      skip();
      if (text_[at_] == '{' || text_[at_] == '}')
        depth += text_[at_++] == '{' ? 1 : -1;
      else
        statement();
    }
    for (const auto& [index, label] : branches_) {
      if (!labels_.count(label)) fail("no label " + label);
      f->code[index].target = labels_[label];
    }
    now_ = nullptr;
  }

  void statement() {
    if (text_[at_] == '$') {
      const std::string label = until(':');
      labels_[label] = int(now_->code.size());
      return;
    }
    const std::string text = until(';');
    if (text[0] != '.') return instruction(text);
    const std::vector<std::string> words = split(text, " ");
    if (words[0] == ".reg") {
      for (const std::string& name : split(text.substr(text.find(words[1]) + words[1].size()), ",")) {
        const size_t angle = name.find('<');
        const int count = angle == std::string::npos ? 1 : std::atoi(name.c_str() + angle + 1);
        for (int i = 0; i < count; ++i)
          register_of(angle == std::string::npos ? name : name.substr(0, angle) + std::to_string(i));
      }
    } else if (words[0] == ".param") {
      Parameter p;
      int end = now_->frame_bytes;
      const std::string name = place(text, end, p);
      if (frame_.count(name) && frame_[name].bytes >= p.bytes) return;  // of an earlier call
      frame_[name] = p, now_->frame_bytes = end;
    } else if (words[0] != ".pragma" && words[0] != ".loc") {
      fail("unknown directive " + text);
    }
  }

  int register_of(const std::string& name) {
    const auto [at, added] = registers_.emplace(name, now_->registers);
    if (added) ++now_->registers;
    return at->second;
  }

  Operand operand(const std::string& text) {
    Operand o;
    const auto number = [&](int64_t value) { return o.kind = Operand::number, o.value = value, o; };
    if (text.compare(0, 2, "0f") == 0 || text.compare(0, 2, "0F") == 0)
      return number(int64_t(std::stoull(text.substr(2), nullptr, 16)));
    if (text.compare(0, 2, "0d") == 0 || text.compare(0, 2, "0D") == 0)
      return number(int64_t(std::stoull(text.substr(2), nullptr, 16)));
    if (text[0] == '-' || std::isdigit(static_cast<unsigned char>(text[0])))
      return number(text[0] == '-' ? std::stoll(text, nullptr, 0) : int64_t(std::stoull(text, nullptr, 0)));
    if (text == "%tid.x") return o.kind = Operand::tid, o;
    if (text == "%ctaid.x") return o.kind = Operand::ctaid, o;
    if (text == "%nctaid.x") return o.kind = Operand::nctaid, o;
    if (registers_.count(text)) return o.kind = Operand::reg, o.index = uint32_t(registers_[text]), o;
    if (frame_.count(text)) return o.kind = Operand::frame, o.value = frame_[text].offset, o;
    if (params_.count(text)) return o.kind = Operand::params, o.value = params_[text].offset, o;
    if (text == shared_) return o.kind = Operand::shared, o;
    fail("unknown operand " + text);
  }
  // [base+offset]
  Operand address(const std::string& text) {
    const size_t plus = text.find('+');
    Operand o = operand(text.substr(1, (plus == std::string::npos ? text.size() - 1 : plus) - 1));
    if (plus != std::string::npos) o.value += std::stoll(text.substr(plus + 1));
    return o;
  }

  void add(const std::string& text, std::vector<Operand>& to) {
    if (text[0] == '{')
      for (const std::string& part : split(text.substr(1, text.size() - 2), ",")) to.push_back(operand(part));
    else if (text[0] == '[')
      to.push_back(address(text));
    else
      to.push_back(operand(text));
  }

  void instruction(const std::string& text) {
    Instruction i;
    i.text = text;
    std::string rest = text;
    if (rest[0] == '@') {
      const size_t space = rest.find(' ');
      i.unless = rest[1] == '!';
      i.guard = register_of(rest.substr(i.unless ? 2 : 1, space - (i.unless ? 2 : 1)));
      rest = rest.substr(rest.find_first_not_of(' ', space));
    }
    const size_t space = rest.find(' ');
    std::vector<std::string> words = split(rest.substr(0, space), ".");
    i.name = words[0], i.words.assign(words.begin() + 1, words.end());
    for (const std::string& w : i.words) {
      const Type type = type_of(w);
      if (type != Type::none) i.into = i.type == Type::none ? type : i.type, i.type = type;
    }
    const std::string tail = space == std::string::npos ? "" : rest.substr(space);
    if (i.name == "call") return call(i, tail);
    std::vector<std::string> parts = split(tail, ",");
    if (i.name == "bra") {
      branches_.emplace_back(int(now_->code.size()), parts[0]);
      now_->code.push_back(i);
      return;
    }
    const size_t both = parts.empty() ? std::string::npos : parts[0].find('|');
    if (both != std::string::npos) parts[0] = "{" + parts[0].substr(0, both) + "," + parts[0].substr(both + 1) + "}";
    for (size_t p = 0; p < parts.size(); ++p) add(parts[p], p == 0 ? i.to : i.of);
    i.width = int(i.name == "st" ? i.of.size() : i.to.size());
    now_->code.push_back(i);
  }

  // call.uni (retval0), name, (param0, param1)
  void call(Instruction i, const std::string& tail) {
    std::vector<std::string> parts = split(tail, ",");
    std::string returned;
    if (parts[0][0] == '(') returned = parts[0].substr(1, parts[0].size() - 2), parts.erase(parts.begin());
    Function*& callee = functions_[parts[0]];
    if (!callee) callee = new Function;
    i.callee = callee;
    if (parts.size() > 1)
      for (const std::string& name : split(parts[1].substr(1, parts[1].size() - 2), ","))
        i.arguments.push_back(int(operand(name).value));
    if (!returned.empty()) i.to.push_back(operand(split(returned, " ")[0]));
    now_->code.push_back(i);
  }

  const std::string& text_;
  std::unordered_map<std::string, Function*>& functions_;
  size_t at_ = 0;
  Function* now_ = nullptr;
  std::string shared_;
  std::unordered_map<std::string, int> registers_, labels_;
  std::unordered_map<std::string, Parameter> frame_, params_;
  std::vector<std::pair<int, std::string>> branches_;
};

}  // namespace ptx
